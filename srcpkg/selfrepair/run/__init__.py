"""A finished run as labelled views: tables by pandas, measured files by xarray, texts of tokens; what notebooks and pages read."""
