"""The exit statuses of the command line, in one place because people write them into scripts."""

from __future__ import annotations

__all__ = ["EPILOG", "FAILED", "INTERRUPTED", "OK", "REFUSED", "UNCLEAN", "UNREAD", "USAGE"]

OK = 0
FAILED = 1
USAGE = 2  # argparse's own
REFUSED = 3
UNCLEAN = 4
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
UNREAD = 141  # 128 + SIGPIPE

EPILOG = """\
exit statuses:
  0    served until a signal; or the connection was closed with 1000, 1001 or without a code
  1    cannot serve, cannot connect, or cannot read the input
  2    wrong arguments
  3    the server refused the connection with an HTTP status
  4    the connection was closed with another code, or lost
  130  interrupted by Ctrl-C while connected
  141  nobody reads the output any more
"""
