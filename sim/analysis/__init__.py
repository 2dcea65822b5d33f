"""Records in, tables and figures out. Knows neither world."""
