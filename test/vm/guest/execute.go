package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long output is awaited after the command ended: a process that it left behind
// may hold the pipe for ever.
const grace = 5 * time.Second

// execute runs the command and says how it ended.
func execute(plan Plan, p ports) error {
	before := remains()
	stdout, stderr, err := carriers(plan, p)
	if err != nil {
		return err
	}
	pid, err := start(plan, stdout.in, stderr.in)
	if err != nil {
		return err
	}
	if err := report(p.control, Report{Started: true}); err != nil {
		return err
	}
	go obey(p.control, pid)
	status := reap(pid)
	ended := Ended{Code: status.ExitStatus(), Left: left(before)}
	if status.Signaled() {
		ended.Signal = int(status.Signal())
	}
	ended.Stdout = stdout.finish()
	if stderr != stdout {
		ended.Stderr = stderr.finish()
	}
	return report(p.control, Report{Ended: &ended})
}

func start(plan Plan, stdout, stderr *os.File) (int, error) {
	if err := os.MkdirAll(plan.Dir, 0o755); err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	process, err := os.StartProcess(plan.Args[0], plan.Args, &os.ProcAttr{
		Dir: plan.Dir, Env: plan.Env, Files: []*os.File{null, stdout, stderr},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start the command: %w", err)
	}
	_ = stdout.Close()
	_ = stderr.Close() // EBADF or so when they are one
	return process.Pid, nil
}

// reap waits for the command, and for every orphan on the way.
func reap(pid int) unix.WaitStatus {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		if got == pid {
			return status
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 255 << 8 // cannot be: the command is our child
		}
	}
}

// obey does what the lane asks for.
func obey(control io.Reader, pid int) {
	lines := bufio.NewScanner(control)
	for lines.Scan() {
		var o Order
		if json.Unmarshal(lines.Bytes(), &o) != nil {
			continue
		}
		if o.Blocked {
			_ = os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0)
		}
		if o.Signal > 0 {
			_ = unix.Kill(pid, unix.Signal(o.Signal))
		}
	}
}

// carrier copies what is written into a pipe to a port.
type carrier struct {
	in    *os.File
	out   *os.File
	mu    sync.Mutex
	bytes int64
	ended chan struct{}
}

func carriers(plan Plan, p ports) (stdout, stderr *carrier, err error) {
	stdout, err = carry(p.stdout)
	if err != nil || plan.Merged {
		return stdout, stdout, err
	}
	stderr, err = carry(p.stderr)
	return stdout, stderr, err
}

func carry(port *os.File) (*carrier, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := &carrier{in: w, out: r, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		buffer := make([]byte, 32<<10)
		for {
			n, err := r.Read(buffer)
			if n > 0 {
				_, _ = port.Write(buffer[:n])
				c.mu.Lock()
				c.bytes += int64(n)
				c.mu.Unlock()
			}
			if err != nil {
				return
			}
		}
	}()
	return c, nil
}

// finish waits until all was carried, and stops a copy whose pipe somebody holds. What it
// counts is what went out: nothing is written afterwards.
func (c *carrier) finish() int64 {
	_ = c.out.SetReadDeadline(time.Now().Add(grace))
	<-c.ended
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}
