package disktest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// qmpClient speaks QEMU's monitor protocol over a socket pair, whose other end the process
// inherits: no path to wait for, and the greeting says that the process is ready.
type qmpClient struct {
	mu   sync.Mutex
	conn net.Conn
	dec  *json.Decoder
}

// qmpPatience bounds one command.
const qmpPatience = 30 * time.Second

// newQMP returns the client and the end for the process, which the caller closes.
func newQMP() (*qmpClient, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp-peer")
	conn, err := net.FileConn(ours)
	if err := errors.Join(err, ours.Close()); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return &qmpClient{conn: conn, dec: json.NewDecoder(conn)}, theirs, nil
}

// greet waits for the process to be ready and enters command mode.
func (q *qmpClient) greet() error {
	if err := q.conn.SetDeadline(time.Now().Add(qmpPatience)); err != nil {
		return err
	}
	var hello struct {
		QMP json.RawMessage `json:"QMP"`
	}
	if err := q.dec.Decode(&hello); err != nil {
		return fmt.Errorf("read QMP greeting: %w", err)
	}
	return q.do("qmp_capabilities", nil)
}

// object is a JSON object.
type object map[string]any

// do runs one command and waits for its answer; events are of no interest.
func (q *qmpClient) do(command string, arguments object) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.conn.SetDeadline(time.Now().Add(qmpPatience)); err != nil {
		return err
	}
	request := object{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(q.conn).Encode(request); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	return q.answer(command)
}

func (q *qmpClient) answer(command string) error {
	for {
		var reply struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := q.dec.Decode(&reply); err != nil {
			return fmt.Errorf("QMP %s: %w", command, err)
		}
		switch {
		case reply.Error != nil:
			return fmt.Errorf("QMP %s: %s", command, reply.Error.Desc)
		case reply.Return != nil:
			return nil
		}
	}
}
