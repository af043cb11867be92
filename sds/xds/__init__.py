"""Serving: Envoy's secret discovery protocol over the store's snapshots."""
