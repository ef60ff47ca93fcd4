// Command run runs tests and reports them for people.
//
//	run [go test's flags and packages]    go test -json; packages default to ./...
//	run generated BIN_DIR                 is the generated code what the contracts give?
//
// It prints a line per package as it ends, the output of what failed, every skipped test with
// its reason, the seconds of each package, and last "N passed, N failed, N skipped". A test
// with subtests is not counted beside them. The exit status is 0 only when nothing failed and
// something ran.
//
// Flags of go test that take a value are written -flag=value here.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := dispatch(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "generated" {
		if len(args) != 2 {
			return errors.New("usage: run generated BIN_DIR")
		}
		return checkGenerated(ctx, args[1], os.Stdout)
	}
	return runTests(ctx, args)
}

// runTests lets go test end by itself when it is interrupted: it then ends its tests.
func runTests(ctx context.Context, args []string) error {
	if !slices.ContainsFunc(args, func(a string) bool { return !strings.HasPrefix(a, "-") }) {
		args = append(args, "./...")
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	r := newReport(os.Stdout)
	readErr := r.read(out)
	ended := cmd.Wait()
	r.close()
	return errors.Join(readErr, r.verdict(ended))
}
