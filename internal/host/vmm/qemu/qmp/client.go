package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	// MaxLine bounds what QEMU may say at once.
	MaxLine = 1 << 20
	// CommandTimeout bounds a command whose context has no deadline.
	CommandTimeout = 10 * time.Second
)

// Event is something QEMU tells unasked.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// Client is a connection to one QEMU.
type Client struct {
	conn    *net.UnixConn
	onEvent func(Event)
	done    chan struct{}

	write sync.Mutex // a descriptor must arrive with its own command

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan message
	err     error
}

// message is a greeting, an answer or an event.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       uint64          `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event
}

// Open takes over conn and negotiates. onEvent is called from one goroutine, in order; it must
// not call the client.
func Open(ctx context.Context, conn *net.UnixConn, onEvent func(Event)) (*Client, error) {
	c := &Client{conn: conn, onEvent: onEvent, done: make(chan struct{}), waiting: map[uint64]chan message{}}
	go c.read()
	// QEMU reads commands only after its greeting, and buffers what came before: no need to
	// wait for the greeting first.
	if err := c.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Done is closed when the connection has ended and the last event was handled.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits for the event handler.
func (c *Client) Close() {
	_ = c.conn.Close()
	<-c.done
}

// Do runs a command. files travel with it (SCM_RIGHTS); result may be nil.
func (c *Client) Do(ctx context.Context, name string, args, result any, files ...*os.File) error {
	ctx, cancel := context.WithTimeout(ctx, CommandTimeout)
	defer cancel()
	id, answer, err := c.expect()
	if err != nil {
		return fault.Wrap(err, "run", "qmp "+name)
	}
	defer c.forget(id)
	if err := c.send(ctx, command{name, args, id}, files); err != nil {
		return fault.Wrap(c.cause(err), "run", "qmp "+name)
	}
	select {
	case m := <-answer:
		return fault.Wrap(m.decode(result), "run", "qmp "+name)
	case <-c.done:
		return fault.Wrap(c.cause(nil), "run", "qmp "+name)
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), "run", "qmp "+name)
	}
}

type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

func (c *Client) expect() (uint64, <-chan message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.next++
	ch := make(chan message, 1)
	c.waiting[c.next] = ch
	return c.next, ch, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	delete(c.waiting, id)
	c.mu.Unlock()
}

// cause prefers why the connection ended over how a write on it failed.
func (c *Client) cause(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return err
}

func (c *Client) send(ctx context.Context, cmd command, files []*os.File) error {
	raw, err := json.Marshal(cmd)
	if err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, 0, len(files))
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	c.write.Lock()
	defer c.write.Unlock()
	deadline, _ := ctx.Deadline()
	_ = c.conn.SetWriteDeadline(deadline)
	_, _, err = c.conn.WriteMsgUnix(append(raw, '\n'), rights, nil)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fault.New(fault.Unavailable, "", "", err.Error())
	}
	return err
}

func (c *Client) read() {
	in := bufio.NewScanner(c.conn)
	in.Buffer(make([]byte, 4096), MaxLine)
	var err error
	for err == nil && in.Scan() {
		err = c.handle(in.Bytes())
	}
	c.fail(errors.Join(err, in.Err()))
	_ = c.conn.Close()
	close(c.done)
}

func (c *Client) handle(line []byte) error {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return fault.New(fault.Internal, "parse", "answer", err.Error())
	}
	switch {
	case m.Name != "":
		c.onEvent(m.Event)
	case m.Greeting == nil:
		c.mu.Lock()
		if ch, ok := c.waiting[m.ID]; ok {
			delete(c.waiting, m.ID)
			ch <- m
		}
		c.mu.Unlock()
	}
	return nil
}

func (c *Client) fail(err error) {
	cause := "connection ended"
	if err != nil {
		cause = "connection ended: " + err.Error()
	}
	c.mu.Lock()
	c.err = fault.New(fault.Unavailable, "", "", cause)
	c.mu.Unlock()
}

func (m message) decode(result any) error {
	if m.Error != nil {
		return fault.New(classKind(m.Error.Class), "", "", m.Error.Desc)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fault.New(fault.Internal, "parse", "answer", err.Error())
	}
	return nil
}

func classKind(class string) fault.Kind {
	switch class {
	case "DeviceNotFound":
		return fault.NotFound
	case "CommandNotFound":
		return fault.Unimplemented
	default:
		return fault.Internal
	}
}
