"""Token pools: entitlements, priority, debt and admission after arXiv 2603.00356."""
