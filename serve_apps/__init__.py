# SPDX-License-Identifier: Apache-2.0
"""Runs in RayService pods: the server and its adapters."""
