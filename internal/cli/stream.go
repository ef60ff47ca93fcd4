package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

// The first byte of a binary message names its stream.
const (
	streamInput byte = iota
	streamStdout
	streamStderr
	streamTerminal
)

const (
	// frameData is the most data in one binary message of 32 KiB.
	frameData = 32<<10 - 1
	// readLimit is far above what a server sends in one message.
	readLimit = 1 << 20
	// pingEvery keeps proxies from cutting a quiet connection.
	pingEvery = 30 * time.Second
)

// stream is one command that runs over a WebSocket (see /exec/stream in the API).
type stream struct{ conn *websocket.Conn }

// control is a text message to the server; one field is set.
type control struct {
	Resize   *v1.PTYSize `json:"resize,omitempty"`
	Signal   string      `json:"signal,omitempty"`
	StdinEOF bool        `json:"stdin_eof,omitempty"`
}

// event is what the server sent: a text message, or Data of a Stream.
type event struct {
	Started *struct {
		PID int `json:"pid"`
	} `json:"started,omitempty"`
	Exit   *v1.ExecExit `json:"exit,omitempty"`
	Error  *v1.Error    `json:"error,omitempty"`
	Stream byte         `json:"-"`
	Data   []byte       `json:"-"`
}

// startStream asks for a command; the first event tells whether it started.
func (c *client) startStream(ctx context.Context, id string, start v1.ExecStart) (*stream, error) {
	req, err := v1.NewStreamExecRequest(c.URL, id)
	if err != nil {
		return nil, err
	}
	//nolint:bodyclose // The connection owns it; refused closes that of a refusal.
	conn, resp, err := websocket.Dial(ctx, req.URL.String(), &websocket.DialOptions{
		HTTPClient: c.http,
		HTTPHeader: http.Header{"X-Api-Key": {c.Key}},
	})
	if err != nil {
		return nil, refused(ctx, resp, err)
	}
	conn.SetReadLimit(readLimit)
	s := &stream{conn: conn}
	if err := s.send(ctx, start); err != nil {
		s.close()
		return nil, cut(err)
	}
	return s, nil
}

// refused explains a failed upgrade: the server's own error when it gave one.
func refused(ctx context.Context, resp *http.Response, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case resp != nil && resp.StatusCode != http.StatusSwitchingProtocols:
		return failedAnswer(resp)
	default:
		return unreachable(err)
	}
}

func (s *stream) send(ctx context.Context, message any) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	return s.conn.Write(ctx, websocket.MessageText, text)
}

// input sends data to the command's input, in messages of at most 32 KiB.
func (s *stream) input(ctx context.Context, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), frameData)
		if err := s.conn.Write(ctx, websocket.MessageBinary, append([]byte{streamInput}, data[:n]...)); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// next waits for an event.
func (s *stream) next(ctx context.Context) (event, error) {
	kind, message, err := s.conn.Read(ctx)
	switch {
	case err != nil:
		return event{}, cut(err)
	case kind == websocket.MessageText:
		var e event
		if err := json.Unmarshal(message, &e); err != nil {
			return event{}, fault.New(fault.Internal, "", "", "the server sent a message that is no JSON: "+err.Error())
		}
		return e, nil
	case len(message) == 0:
		return event{}, fault.New(fault.Internal, "", "", "the server sent an empty binary message")
	default:
		return event{Stream: message[0], Data: message[1:]}, nil
	}
}

// keepAlive pings until ctx ends. A missing answer is no failure: the reader may be waiting
// for a slow stdout, and TCP itself notices a dead peer.
func (s *stream) keepAlive(ctx context.Context) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			wait, cancel := context.WithTimeout(ctx, pingEvery)
			_ = s.conn.Ping(wait)
			cancel()
		}
	}
}

func (s *stream) close() { _ = s.conn.CloseNow() }

// cut explains a connection that ended before the command did.
func cut(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var closed websocket.CloseError
	cause := rootCause(err)
	if errors.As(err, &closed) {
		cause = strings.TrimSpace(fmt.Sprintf("%d %s", closed.Code, closed.Reason))
	}
	return fault.New(fault.Unavailable, "", "", "the connection ended before the command did: "+cause).
		WithHint("the command may still run; `roost info ID` shows the sandbox's state")
}
