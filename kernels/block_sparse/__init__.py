"""3D block-sparse attention (section 3.4.2, Appendix A.2)."""
