# SPDX-License-Identifier: Apache-2.0
"""Fetching and pushing adapters, data sets and model files: one code path for the server, the jobs and the operator."""
