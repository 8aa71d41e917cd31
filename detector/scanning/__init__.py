"""Many files to a folder of Parquet: listed, read, judged and written as a stream, on one machine
or many.
"""
