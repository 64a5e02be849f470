"""CPT: one encoder, a decoder that understands and a decoder that writes."""
