"""The dashboard: Streamlit pages over run folders. It calls the probe's public functions and owns no science."""
