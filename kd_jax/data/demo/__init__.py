"""Generated demonstration cases: simulated tumours in the SRI24 atlas. Data, not method."""
