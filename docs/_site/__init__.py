"""What the site of the documents needs beside Sphinx, one idea a file."""
