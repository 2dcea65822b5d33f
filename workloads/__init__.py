"""Who asks for what, and when. numpy only; pandas and pyarrow at the file edge."""
