"""From demand and objectives to classes, baselines and limits that hold: `tokenpools advise`."""
