package uffd

import (
	"context"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "pager":
			os.Exit(Main(context.Background(), os.Args[2:]))
		case "minimal":
			minimal()
		case "vmm":
			playVMM(os.Args[2:])
		}
	}
	goleak.VerifyTestMain(m)
}
