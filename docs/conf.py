"""Sphinx's settings for the site: `make site` builds docs/_build/html from Markdown, the committed notebooks and the docstrings."""

project = "kpt_lab"
author = "the authors of kpt_lab"
copyright = "the authors of kpt_lab; Apache-2.0"
version = release = "0.1.0"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.githubpages", "kpt_lab.claims.roles", "kpt_lab.site"]
exclude_patterns = ["_build", "_static", "**/.ipynb_checkpoints"]

# notebooks are shown with the outputs that are committed; nothing runs
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"
nb_code_prompt_show = "Show the set-up"
nb_code_prompt_hide = "Hide the set-up"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
suppress_warnings = ["kpt_lab.stale"]  # a stale figure says so itself, and `kpt-lab claims` warns

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
nitpick_ignore_regex = [("py:.*", r"(?!kpt_lab\.).*")]  # names of other projects have no pages here

html_theme = "furo"
html_title = "kpt_lab"
html_static_path = ["_static"]
html_favicon = "_static/mark.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_last_updated_fmt = None
html_theme_options = {"navigation_with_keys": False}
