"""Numbers of a scan, of its organs or of a model that may explain how far an attack gets, registered as factors."""
