// Command lane runs a program in a Linux VM of its own; package vm says how.
//
//	lane disk|host [flags] -- PROGRAM [ARGS]
//	go test -exec 'lane disk --' ./internal/host/disk/devicemapper/...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/roosthq/roost/test/vm"
	"github.com/roosthq/roost/test/vm/guest"
)

// exitFailed says that the VM, not the program, failed.
const exitFailed = 125

func main() {
	if os.Getpid() == 1 {
		guest.Main() // this program is the VM's init
	}
	config, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "lane:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// go test sends it to tests that take too long: they print their stacks.
	quit := make(chan os.Signal, 1)
	signal.Notify(quit, syscall.SIGQUIT)
	config.Signals = quit
	code, err := vm.Run(ctx, config)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lane:", err)
		code = exitFailed
	}
	os.Exit(code)
}

func parse(args []string) (vm.Config, error) {
	if len(args) == 0 {
		return vm.Config{}, errors.New("usage: lane disk|host [flags] -- PROGRAM [ARGS]")
	}
	c := vm.Config{Shape: args[0]}
	flags := flag.NewFlagSet("lane", flag.ContinueOnError)
	flags.Func("file", "HOST=GUEST: put a file into the VM", places(&c.Files))
	flags.Func("tree", "HOST=GUEST: mount a folder read-only", places(&c.Trees))
	flags.Func("drive", "IMAGE=GUEST: mount an image of ext4 or EROFS read-only", places(&c.Drives))
	flags.Func("tool", "NAME: put a program and its libraries into the VM", func(v string) error {
		c.Tools = append(c.Tools, v)
		return nil
	})
	flags.IntVar(&c.ScratchMB, "scratch", 0, "MB of the file system on /tmp (6144)")
	flags.IntVar(&c.MemoryMB, "memory", 0, "MB of memory instead of the shape's")
	flags.IntVar(&c.CPUs, "cpus", 0, "vCPUs instead of the shape's")
	flags.BoolVar(&c.KeepLeft, "keep-left", false, "what the program leaves in the VM is no failure")
	margin := flags.Duration("margin", time.Minute, "what a test may take beyond its -timeout to say so, before the VM is ended")
	flags.BoolVar(&c.Verbose, "v", false, "tell what the VM does")
	if err := flags.Parse(args[1:]); err != nil {
		return c, err
	}
	if flags.NArg() == 0 {
		return c, errors.New("no program is given")
	}
	return withProgram(c, flags.Args(), *margin)
}

func places(to *[]vm.Place) func(string) error {
	return func(v string) error {
		host, guest, ok := strings.Cut(v, "=")
		if !ok || host == "" || !filepath.IsAbs(guest) {
			return fmt.Errorf("%q is not HOST=/GUEST", v)
		}
		*to = append(*to, vm.Place{Host: host, Guest: guest})
		return nil
	}
}

func withProgram(c vm.Config, program []string, margin time.Duration) (vm.Config, error) {
	dir, err := os.Getwd()
	if err != nil {
		return c, err
	}
	c.Dir, c.Program, c.Args, c.Env = dir, program[0], program[1:], environment()
	if err := returnsNothing(c.Args); err != nil {
		return c, err
	}
	c.Limit, err = limit(c.Args, margin)
	return c, err
}

// fileFlags make test programs write files, which stay in the VM.
var fileFlags = regexp.MustCompile(`^-test\.(coverprofile|gocoverdir|cpuprofile|memprofile|blockprofile|mutexprofile|trace|fuzz|fuzzcachedir)=`)

func returnsNothing(args []string) error {
	for _, a := range args {
		if fileFlags.MatchString(a) {
			return fmt.Errorf("%s: the lane brings no files back from the VM", a)
		}
	}
	return nil
}

// limit is that of the tests and a margin; 0 is none.
func limit(args []string, margin time.Duration) (time.Duration, error) {
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, "-test.timeout="); ok {
			d, err := time.ParseDuration(v)
			if err != nil || d == 0 {
				return 0, err
			}
			return d + margin, nil
		}
	}
	return 0, nil
}

// environment is the guest's: the project's own variables and those that ROOST_LANE_ENV names.
func environment() []string {
	out := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "TMPDIR=/tmp", "USER=root", "LANG=C.UTF-8", "ROOST_LANE=1",
	}
	named := map[string]bool{"GOTRACEBACK": true, "GODEBUG": true, "GOMAXPROCS": true}
	for name := range strings.FieldsFuncSeq(os.Getenv("ROOST_LANE_ENV"), func(r rune) bool { return r == ',' || r == ' ' }) {
		named[name] = true
	}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if named[name] || strings.HasPrefix(name, "ROOST_") {
			out = append(out, v)
		}
	}
	return out
}
