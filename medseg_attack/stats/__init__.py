"""From counts to intervals, tables in and tables out: no torch in here."""
