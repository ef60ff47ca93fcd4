package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/coder/websocket"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/guestproxy"
	"github.com/roosthq/roost/internal/fault"
)

// startMessage is the client's first: a command, or a process to attach to.
type startMessage struct {
	v1.ExecStart
	Connect *uint32 `json:"connect"`
}

// clientMessage is any text message after the first.
type clientMessage struct {
	Resize   *v1.PTYSize `json:"resize"`
	Signal   *string     `json:"signal"`
	StdinEOF *bool       `json:"stdin_eof"`
}

type started struct {
	PID int `json:"pid"`
}

// serverMessage is any text message of the server.
type serverMessage struct {
	Started *started     `json:"started,omitempty"`
	Exit    *v1.ExecExit `json:"exit,omitempty"`
	Error   *v1.Error    `json:"error,omitempty"`
}

func (s *session) send(m serverMessage) {
	raw, err := json.Marshal(m)
	if err != nil {
		s.cancel(err)
		return
	}
	s.write(websocket.MessageText, raw)
}

// write has no time limit: a stopped terminal may stop its output for hours.
func (s *session) write(kind websocket.MessageType, data []byte) {
	if err := s.conn.Write(s.ctx, kind, data); err != nil {
		_ = s.broke(err)
	}
}

// refuse ends a session with an error.
func (s *session) refuse(err error) {
	if s.ctx.Err() != nil {
		return
	}
	p := problem(err)
	s.send(serverMessage{Error: &p})
	_ = s.conn.Close(websocket.StatusNormalClosure, "")
}

func (s *session) readStart() (*startMessage, error) {
	ctx, cancel := context.WithTimeout(s.ctx, startWithin)
	defer cancel()
	kind, data, err := s.conn.Read(ctx)
	if err != nil {
		return nil, s.broke(err)
	}
	m := &startMessage{}
	if err := decode(kind, data, m); err != nil {
		return nil, err
	}
	if m.Connect != nil && len(m.Cmd) > 0 {
		return nil, fault.New(fault.Invalid, "", "", "connect and cmd cannot both be given")
	}
	if m.Connect != nil {
		return m, guestproxy.CheckUser(or(m.User, ""))
	}
	return m, nil
}

func decode(kind websocket.MessageType, data []byte, into any) error {
	if kind != websocket.MessageText {
		return fault.New(fault.Invalid, "read", "message", "the first message must be text with JSON")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fault.New(fault.Invalid, "read", "message", err.Error())
	}
	return nil
}

// broke records how a connection ended.
func (s *session) broke(err error) error {
	cause := error(errBroken)
	switch {
	case s.stopping.Load():
		cause = errStopping
	case websocket.CloseStatus(err) == websocket.StatusNormalClosure:
		cause = errDetached
	}
	s.cancel(cause)
	return cause
}

// readClient reads messages until the connection ends. Signals and sizes pass input that
// waits, up to inputsAhead messages of it; beyond them the client is held back.
func (s *session) readClient() {
	for {
		kind, data, err := s.conn.Read(s.ctx)
		if err != nil {
			_ = s.broke(err)
			return
		}
		if kind == websocket.MessageBinary {
			err = s.take(data)
		} else {
			err = s.command(data)
		}
		if err != nil {
			s.expel(err)
			return
		}
	}
}

// expel ends the session of a client that does not keep to the protocol. The process is
// told before the closing handshake, which may take its time.
func (s *session) expel(err error) {
	if s.ctx.Err() != nil {
		return
	}
	p := problem(err)
	s.send(serverMessage{Error: &p})
	s.hangUp()
	_ = s.conn.Close(websocket.StatusNormalClosure, "")
	s.cancel(errExpelled)
}

// take queues input.
func (s *session) take(data []byte) error {
	if len(data) == 0 || guestproxy.Stream(data[0]) != guestproxy.Stdin {
		return fault.New(fault.Invalid, "read", "message", "binary messages must begin with byte 0, the input stream")
	}
	if len(data) > 1 {
		s.queue(data[1:])
	}
	return nil
}

func (s *session) queue(part []byte) {
	select {
	case s.input <- part:
	case <-s.ctx.Done():
	}
}

// command obeys a text message. The guest's refusal (the process has just ended) is no
// failure of the session.
func (s *session) command(data []byte) error {
	var m clientMessage
	if err := decode(websocket.MessageText, data, &m); err != nil {
		return err
	}
	switch {
	case m.Resize != nil:
		size, err := sizeOf(*m.Resize)
		if err != nil {
			return err
		}
		s.tell("resize", s.proc.Resize(s.ctx, size))
	case m.Signal != nil:
		sig, err := guestproxy.ParseSignal(*m.Signal)
		if err != nil {
			return err
		}
		s.tell("signal", s.proc.Signal(s.ctx, sig))
	case m.StdinEOF != nil && *m.StdinEOF:
		s.queue(nil)
	default:
		return fault.New(fault.Invalid, "read", "message", fmt.Sprintf("%.64q says nothing: resize, signal or stdin_eof", data))
	}
	return nil
}

func (s *session) tell(what string, err error) {
	if err != nil && s.ctx.Err() == nil {
		s.api.log.Debug("guest refused", "what", what, "sandbox_id", s.id, "error", err)
	}
}

// feed gives input to the process in order. Once the process takes no more, the rest is
// dropped, as a shell does with a closed pipe.
func (s *session) feed() {
	closed := false
	for {
		select {
		case <-s.ctx.Done():
			return
		case part := <-s.input:
			switch {
			case closed:
			case part == nil:
				s.tell("end of input", s.proc.CloseStdin(s.ctx))
				closed = true
			default:
				err := s.proc.Write(s.ctx, part)
				s.tell("input", err)
				closed = err != nil
			}
		}
	}
}
