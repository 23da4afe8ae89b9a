"""The page that `medattack report` writes: what is on it, its charts, its template. No torch in here."""
