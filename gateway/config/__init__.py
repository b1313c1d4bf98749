"""Settings: what there is to set, where the values come from, and what is wrong with them.

1. `settings.py`: every setting with its description and default; `NumberSettings` for one business number.
2. `values.py`, `call_hours.py`: the types of single values.
3. `loading.py`: flags over environment over file over defaults, with every mistake named at once.
4. `checks.py`: mistakes that only several settings together show.
"""
