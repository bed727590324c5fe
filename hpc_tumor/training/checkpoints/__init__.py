"""Keep what a resume needs: files with checksums, written beside the training by one thread."""
