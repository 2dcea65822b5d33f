"""The door into Envoy: an external processor (``ext_proc``), and the admission part of an endpoint picker."""
