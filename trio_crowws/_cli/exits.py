"""The exit statuses of the command line, in one place because people write them into scripts."""

from __future__ import annotations

__all__ = ["EPILOG", "FAILED", "OK", "REFUSED", "UNCLEAN", "UNREAD", "USAGE"]

OK = 0
FAILED = 1
USAGE = 2  # argparse's own
REFUSED = 3
UNCLEAN = 4
UNREAD = 141  # 128 + SIGPIPE, as a shell reports it; a signal that ends `connect` is reported in the same way

EPILOG = """\
exit statuses:
  0    run: served until a signal; connect: closed with 1000, 1001 or without a code
  1    cannot serve or connect, or cannot read the input or write the output
  2    wrong arguments
  3    connect: the server refused the connection with an HTTP status
  4    connect: closed with another code, or lost
  130  connect: ended by Ctrl-C (143: by SIGTERM)
  141  connect: nobody reads the output any more
"""
