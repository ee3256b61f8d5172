# SPDX-License-Identifier: Apache-2.0
"""Plans in, Kubernetes objects out."""
