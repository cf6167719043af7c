"""A finished run as labelled views: tables by pandas, measured files by xarray, prompts as text. What notebooks read."""
