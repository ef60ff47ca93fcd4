package network

// Internet says how much of the outside a guest reaches.
type Internet uint8

const (
	// InternetOpen: everything but the denied ranges, the host and other slots. The default.
	InternetOpen Internet = iota
	// InternetNone: nothing, and no DNS. The agent still reaches the guest.
	InternetNone
)

// Policy is a slot's egress policy. The zero value is what every new slot has.
type Policy struct {
	Internet Internet
}
