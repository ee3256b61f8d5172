# SPDX-License-Identifier: Apache-2.0
"""Who makes GPU nodes: AKS agent pools, Karpenter NodePools, or the user."""
