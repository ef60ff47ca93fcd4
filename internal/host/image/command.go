package image

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// command is one run of a host tool.
type command struct {
	dir    string
	env    []string
	stdout io.Writer
	// hint says what to do when the tool is missing or fails.
	hint string
	// packageName is the Debian package that has the tool, where its name does not tell.
	packageName string
}

// run runs a tool to its end. The tool is process 1 of a process namespace and sees a mount
// namespace of its own: when ctx ends, or we die, one SIGKILL ends it with all it started, and
// the kernel drops its mounts. Its last words are in the error.
func (c command) run(ctx context.Context, name string, args ...string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return fault.New(fault.FailedPrecondition, "run", name, "not installed").
			WithHint("run deploy/setup as root, or apt-get install " + cmp.Or(c.packageName, "the package that has "+name))
	}
	// The death signal is sent when the thread that forked ends, so it must not end early.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var said tail
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = c.dir
	cmd.Env = append(baseEnv(), c.env...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if c.stdout != nil {
		cmd.Stdout = c.stdout
	}
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		return c.failed(ctx, name, err, said.String())
	}
	return nil
}

// output is run for a tool whose answer is short text.
func (c command) output(ctx context.Context, name string, args ...string) (string, error) {
	var out bytes.Buffer
	c.stdout = &out
	err := c.run(ctx, name, args...)
	return out.String(), err
}

func (c command) failed(ctx context.Context, name string, err error, said string) error {
	if ctx.Err() != nil {
		return fault.Wrap(context.Cause(ctx), "run", name)
	}
	kind := fault.Internal
	if strings.Contains(said, "No space left on device") {
		kind = fault.ResourceExhausted
	}
	return &fault.Error{
		Kind: kind, Op: "run", Object: name, Hint: c.hint,
		Err: fmt.Errorf("%w: %s", err, strings.TrimSpace(said)),
	}
}

// baseEnv is a small, fixed environment: output must not depend on the caller's. Proxies are
// the exception, since they say how to reach the mirrors.
func baseEnv() []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
	}
	for _, name := range []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy"} {
		for _, key := range []string{name, strings.ToUpper(name)} {
			if value, ok := os.LookupEnv(key); ok {
				env = append(env, key+"="+value)
			}
		}
	}
	return env
}

// tail keeps the end of what a tool says.
type tail struct{ buf []byte }

const tailBytes = 4096

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailBytes; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.buf) }

// linkOrCopy puts a file at dst, which must be on a Linux file system; nothing is linked twice.
func linkOrCopy(src, dst string) error {
	if err := removeIfThere(dst); err != nil {
		return err
	}
	if os.Link(src, dst) == nil {
		return nil
	}
	return copyFile(src, dst)
}

// copyFile publishes a copy of src at dst by rename.
func copyFile(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // read only
	out, err := os.CreateTemp(filepath.Dir(dst), ".new-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(out.Name(), dst)
	}
	if err != nil {
		_ = os.Remove(out.Name()) // the copy's error is the one that counts
	}
	return err
}
