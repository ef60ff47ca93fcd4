package loop

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/roosthq/roost/test/census"
)

// TestMain plays another process where one is wanted.
func TestMain(m *testing.M) {
	if path := os.Getenv("ROOST_TEST_LOOP_HOLD"); path != "" {
		hold(path)
		return
	}
	os.Exit(census.Main(m, census.Own("roost-loop-test")))
}

// hold acquires a file read-only and, if asked, for writing, says so, and waits for its end.
func hold(path string) {
	r := NewRegistry(os.Getenv("ROOST_TEST_LOOP_PREFIX"))
	ref, err := r.Acquire(context.Background(), path, os.Getenv("ROOST_TEST_LOOP_WRITE") == "")
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	fmt.Println(ref.Path)
	_, _ = fmt.Scanln() // the end of standard input
	fmt.Println(ref.Release())
}
