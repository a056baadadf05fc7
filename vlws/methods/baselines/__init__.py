"""What UniKE is compared with: one file a method, all of them editors (`vlws.models.editing`)."""
