# SPDX-License-Identifier: Apache-2.0
"""kaito-ray: one KAITO Workspace in, a language model served or tuned on Ray out."""
