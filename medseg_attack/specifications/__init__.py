"""Other tools' formats, as their own specifications define them: read alike by data sets and models."""
