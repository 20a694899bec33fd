"""Models from a hub: searched, downloaded, kept and registered."""
