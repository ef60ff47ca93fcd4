package microvm_test

import (
	"context"
	"os"
	"testing"

	"github.com/roosthq/roost/internal/host/memory/uffd"
)

// TestMain runs the tests, or is a page server that one of them has started.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "pager" {
		os.Exit(uffd.Main(context.Background(), os.Args[2:]))
	}
	os.Exit(m.Run())
}
