// Command run runs tests and reports them for people.
//
//	run [go test's flags and packages]    go test -json; packages default to ./...
//	run -add=FILE [flags and packages]    the same, one of several runs: adds what it knows to FILE
//	run total FILE                        what those runs come to
//	run generated BIN_DIR                 is the generated code what the contracts give?
//
// It prints a line per package as it ends, the output of what failed, every skipped test with
// its reason, the seconds of each package, and last "N passed, N failed, N skipped". A test
// with subtests is not counted beside them. The exit status is 0 only when nothing failed and
// something ran.
//
// A test may be skipped in one run, which lacks what it needs, and run in another, in a VM: it is
// counted once, as what came of it where it ran. So of several runs only the total lists what was
// skipped and closes with that line.
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
	if len(args) > 0 && args[0] == "total" {
		if len(args) != 2 {
			return errors.New("usage: run total FILE")
		}
		return total(args[1], os.Stdout)
	}
	return runTests(ctx, args)
}

// runTests passes an interruption to go test and all that it runs: go test alone would wait for its
// tests.
func runTests(ctx context.Context, args []string) error {
	var add string
	if len(args) > 0 {
		if file, ok := strings.CutPrefix(args[0], "-add="); ok {
			add, args = file, args[1:]
		}
	}
	if !slices.ContainsFunc(args, func(a string) bool { return !strings.HasPrefix(a, "-") }) {
		args = append(args, "./...")
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
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
	return errors.Join(readErr, r.verdict(ended, add))
}
