# SPDX-License-Identifier: Apache-2.0
"""Runs in RayJob pods: fine-tuning."""
