"""What keeps a reader's files safe: bytes on a disk that hiccups, what a file holds, the workspace, the files of a data set,
and what a reader may set."""
