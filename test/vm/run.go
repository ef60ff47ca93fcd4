package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/roosthq/roost/test/vm/guest"
)

const (
	// bootLimit is generous: a boot takes seconds, and the machine may have much else to do.
	bootLimit = 4 * time.Minute
	// quitGrace is how long a program that is told to quit may print its stacks.
	quitGrace = 20 * time.Second
	// consoleLines are shown of what the console said: some stacks.
	consoleLines = 150
)

// Run boots a VM, runs the program in it and gives its exit status. An error says that there
// is none: the VM died, hung or could not be made.
func Run(ctx context.Context, c Config) (int, error) {
	s, err := c.shape()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	m, err := build(c, s)
	if err != nil {
		return 0, err
	}
	defer func() { _ = m.close() }()
	c.tell("built in %.1f s", time.Since(began).Seconds())
	runtime.LockOSThread() // QEMU dies with the thread that started it
	defer runtime.UnlockOSThread()
	q, err := startQEMU(m, s)
	if err != nil {
		return 0, err
	}
	r := &run{config: c, q: q, began: time.Now(), console: &tail{}, died: make(chan struct{}), reports: make(chan guest.Report)}
	ended, err := r.follow(ctx)
	if err != nil {
		return 0, err
	}
	return r.judge(ended)
}

// tell says on standard error what the VM does.
func (c Config) tell(format string, args ...any) {
	if c.Verbose {
		fmt.Fprintf(os.Stderr, "lane: "+format+"\n", args...)
	}
}

// run is a VM that runs.
type run struct {
	config         Config
	q              *qemu
	began          time.Time
	console        *tail
	reports        chan guest.Report
	stdout, stderr *stream
	// died is closed when the process is gone.
	died chan struct{}
}

// follow waits for the end of the program. The VM is gone when it returns.
func (r *run) follow(ctx context.Context) (*guest.Ended, error) {
	stop := make(chan struct{})
	defer close(stop)
	r.stdout, r.stderr = copyTo(os.Stdout, r.q.stdout), copyTo(os.Stderr, r.q.stderr)
	consoleEnded := make(chan struct{})
	go func() {
		defer close(consoleEnded)
		_, _ = io.Copy(r.console, r.q.console)
	}()
	go r.listen(stop)
	go func() {
		_ = r.q.cmd.Wait()
		close(r.died)
	}()
	ended, err := r.await(ctx)
	if err == nil {
		r.stdout.reached(ended.Stdout)
		r.stderr.reached(ended.Stderr)
	}
	_ = r.q.cmd.Process.Kill()
	<-r.died
	<-consoleEnded
	r.stdout.end()
	r.stderr.end()
	if err != nil {
		return nil, r.explain(err)
	}
	return ended, nil
}

// await reads reports until the program ended, or something else did.
func (r *run) await(ctx context.Context) (*guest.Ended, error) {
	boot := time.After(bootLimit)
	var limit, quit <-chan time.Time
	if r.config.Limit > 0 {
		limit = time.After(bootLimit + r.config.Limit)
	}
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-r.died:
			return nil, fmt.Errorf("the VM died: QEMU: %s", r.q.cmd.ProcessState)
		case <-boot:
			return nil, fmt.Errorf("the VM did not start the program in %s", bootLimit)
		case <-limit:
			r.order(guest.Order{Signal: int(syscall.SIGQUIT), Blocked: true})
			quit = time.After(quitGrace)
		case <-quit:
			return nil, fmt.Errorf("the program did not end in %s", r.config.Limit)
		case s := <-r.config.Signals:
			if number, ok := s.(syscall.Signal); ok {
				r.order(guest.Order{Signal: int(number)})
			}
		case report := <-r.reports:
			switch {
			case report.Failed != "":
				return nil, errors.New(report.Failed)
			case report.Started:
				r.config.tell("started after %.1f s", time.Since(r.began).Seconds())
				boot = nil
				if r.config.Limit > 0 {
					limit = time.After(r.config.Limit)
				}
			case report.Ended != nil:
				r.config.tell("ended after %.1f s: %+v", time.Since(r.began).Seconds(), *report.Ended)
				return report.Ended, nil
			}
		}
	}
}

// listen passes reports on until nobody wants them.
func (r *run) listen(stop <-chan struct{}) {
	lines := bufio.NewScanner(r.q.control)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var report guest.Report
		if err := json.Unmarshal(lines.Bytes(), &report); err != nil {
			report = guest.Report{Failed: fmt.Sprintf("not a report: %q", lines.Text())}
		}
		select {
		case r.reports <- report:
		case <-stop:
			return
		}
	}
}

// order tells the guest; what it cannot hear any more does not matter.
func (r *run) order(o guest.Order) {
	line, err := json.Marshal(o)
	if err == nil {
		_, _ = r.q.control.Write(append(line, '\n'))
	}
}

// explain adds what the console and QEMU said.
func (r *run) explain(err error) error {
	text := r.console.String()
	if lines := strings.Split(text, "\n"); len(lines) > consoleLines {
		text = strings.Join(lines[len(lines)-consoleLines:], "\n")
	}
	out := fmt.Sprintf("after %.1f s: %v", time.Since(r.began).Seconds(), err)
	if said := r.q.complaints.String(); said != "" {
		out += "\nQEMU: " + said
	}
	return fmt.Errorf("%s\nthe console's end:\n%s", out, text)
}

// judge makes an exit status of how the program ended.
func (r *run) judge(e *guest.Ended) (int, error) {
	code := e.Code
	if e.Signal != 0 {
		fmt.Fprintf(os.Stderr, "lane: the program was killed by signal %d (%s)\n", e.Signal, syscall.Signal(e.Signal))
		code = 128 + e.Signal
	}
	if len(e.Left) > 0 && !r.config.KeepLeft {
		fmt.Fprintf(os.Stderr, "lane: left in the VM:\n  %s\n", strings.Join(e.Left, "\n  "))
		if code == 0 {
			code = 1
		}
	}
	if code != 0 {
		if text := r.console.String(); text != "" {
			fmt.Fprintf(os.Stderr, "lane: the kernel said:\n%s\n", text)
		}
	}
	return code, nil
}
