"""The page, the HTTP API, the review of a folder and the game: what a browser and other services
use.

The server's process only reads requests and writes answers; pictures are opened and judged in
another one (`worker`), so that nothing in a file can harm more than its own answer. Needs the
extra: `pip install 'ganscope[web]'`; but `report` and `project` do not.
"""
