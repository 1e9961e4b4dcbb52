"""Files of any kind: read and written at offsets, appearing at their destination complete or not at all."""
