package gvisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	// container is every sandbox's name for runsc: short, for its socket's path.
	container = "s"
	stateDir  = "s"
	pidFile   = "pid"
	panicLog  = "panic.log"
	errorLog  = "runsc.log"
	// maxSocketPath is what fits into a socket address; for a longer one runsc would make its
	// socket somewhere else.
	maxSocketPath = 107
)

func controlSocket(runDir string) string {
	return filepath.Join(runDir, stateDir, "runsc-"+container+".sock")
}

// rootFlag marks every runsc command of a sandbox, and its sentry and gofer.
func rootFlag(runDir string) string { return "--root=" + filepath.Join(runDir, stateDir) }

// command is one call of runsc.
type command struct {
	build  build
	runDir string
	// network: the sandbox has an interface. cgroups: it is put into one.
	network, cgroups bool
	// console becomes what the sandbox prints to.
	console *os.File
	// more flags of runsc.
	more []string
	args []string
}

// flags are the same for every command of a sandbox.
func (c command) flags() []string {
	network := "none"
	if c.network {
		network = "sandbox"
	}
	flags := []string{
		rootFlag(c.runDir),
		"--log=" + filepath.Join(c.runDir, errorLog),
		"--panic-log=" + filepath.Join(c.runDir, panicLog),
		"--platform=systrap",
		"--network=" + network,
		"--in-sandbox-cgroup=v2",
		"--allow-suid",
		"--gofer-network-namespace=new", // the default pins a mount
		"--directfs=true",
		"--overlay2=none", // the rootfs annotations say which
		"--restore-spec-validation=ignore",
	}
	if !c.cgroups {
		flags = append(flags, "--ignore-cgroups")
	}
	return append(flags, c.more...)
}

// run waits for the command's end; a ctx that ends kills it, not what it has started.
func (c command) run(ctx context.Context) error {
	log := filepath.Join(c.runDir, errorLog)
	if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(err, "remove", log)
	}
	cmd := exec.CommandContext(ctx, c.build.path, append(c.flags(), c.args...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"}
	var said bytes.Buffer
	if c.console != nil {
		cmd.Stdout, cmd.Stderr = c.console, c.console
	} else {
		cmd.Stderr = &said // the log may lie on the very disk that is full
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fault.Wrap(ctx.Err(), "wait for", "runsc "+verb(c.args))
		}
		return failure(verb(c.args), err, complaints(log), printable(said.String()))
	}
	return nil
}

// verb is a command's name for people.
func verb(args []string) string { return args[0] }

// failure says what runsc wrote to its log, or else to its standard error; first of all that a disk
// is full, which the log may be too short for.
func failure(verb string, err error, said ...string) error {
	said = append(said, err.Error())
	if i := slices.IndexFunc(said, func(s string) bool { return strings.Contains(s, unix.ENOSPC.Error()) }); i >= 0 {
		return failureOf(verb, said[i])
	}
	return failureOf(verb, said[slices.IndexFunc(said, func(s string) bool { return s != "" })])
}

// failureOf knows those failures that are the capture's or the host's, not Roost's.
func failureOf(verb, said string) error {
	full := strings.Contains(said, unix.ENOSPC.Error()) // wherever in it: what failed may be shown at length
	said, _, _ = strings.Cut(said, ": goroutine ")      // a stack is for runsc's makers
	said = clipped(said)
	kind := fault.Internal
	switch {
	case full:
		return &fault.Error{Kind: fault.ResourceExhausted, Op: "run", Object: "runsc " + verb, Err: fmt.Errorf("%s (%w)", said, unix.ENOSPC)}
	case strings.Contains(said, "missing features"), strings.Contains(said, "incompatible"):
		kind = fault.FailedPrecondition
	}
	return fault.New(kind, "run", "runsc "+verb, said)
}

// complaints are the errors in a runsc log, one line.
func complaints(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 1 << 20
	raw, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return ""
	}
	var said []string
	dec := json.NewDecoder(bytes.NewReader(raw))
	for {
		var line struct {
			Msg   string `json:"msg"`
			Level string `json:"level"`
		}
		if dec.Decode(&line) != nil {
			break
		}
		if line.Msg != "" {
			said = append(said, printable(line.Msg))
		}
	}
	return strings.Join(said, "; ")
}

// clipped keeps the beginning of a long text and its end, where the cause is.
func clipped(text string) string {
	const most = 600
	if len(text) <= most {
		return text
	}
	return text[:most/2] + " ... " + text[len(text)-most/2:]
}

// printable keeps text from doing anything in a log or a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r > '~':
			return -1
		}
		return r
	}, text)
}
