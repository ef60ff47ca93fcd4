package uffd

import (
	"context"
	"os"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// collect makes garbage collection run all the time: a page server lives long, and a descriptor that
// only its number is known of is closed by it.
func collect() {
	for {
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "pager":
			go collect()
			os.Exit(Main(context.Background(), os.Args[2:]))
		case "minimal":
			minimal()
		case "vmm":
			playVMM(os.Args[2:])
		}
	}
	goleak.VerifyTestMain(m)
}
