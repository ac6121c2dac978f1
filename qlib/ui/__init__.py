"""The screens: the only folder of the library that knows Streamlit."""
