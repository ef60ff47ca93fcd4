package main

import (
	"context"
	"os"

	"github.com/roosthq/roost/internal/host/memory/uffd"
)

// pagerCommand is what the agent starts itself as, once for a VM whose memory is served page by page:
// see package uffd. It is no command of the command line's, which would parse, and print.
const pagerCommand = "pager"

// servePages does not return when this process is a page server.
func servePages(args []string) {
	if len(args) > 1 && args[1] == pagerCommand {
		os.Exit(uffd.Main(context.Background(), args[2:]))
	}
}
