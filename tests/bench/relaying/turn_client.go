// What other WireGuard products put before the kernel's WireGuard on a host that no direct path reaches: a TURN client
// in user space, as NetBird has it (client/iface/wgproxy/udp, with the same library). For the bench of paths.
//
// turn_client SERVER WIREGUARD PEER: WIREGUARD is where the host's WireGuard listens; PEER is a file (a FIFO: it is read
// to its end) with the place that the other host sends from. Prints the address that the server relays for this host, and
// the endpoint that its WireGuard shall have for the other.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"

	"github.com/pion/logging"
	"github.com/pion/turn/v2"
)

const (
	largest = 1500    // bytes of a datagram
	room    = 4 << 20 // bytes of a socket's buffer, of which the kernel gives what an ordinary host allows
	account = "bench" // name, password and realm; the server is the lab's own
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: turn_client SERVER WIREGUARD PEER")
	}
	own := must(net.ListenUDP("udp4", nil))
	check(own.SetReadBuffer(room))
	client := must(turn.NewClient(&turn.ClientConfig{
		TURNServerAddr: os.Args[1],
		Conn:           own,
		Username:       account,
		Password:       account,
		Realm:          account,
		LoggerFactory:  logging.NewDefaultLoggerFactory(),
	}))
	check(client.Listen())
	relayed := must(client.Allocate())
	wireguard := must(net.DialUDP("udp4", nil, must(net.ResolveUDPAddr("udp4", os.Args[2]))))
	check(wireguard.SetReadBuffer(room))
	fmt.Printf("relayed %s\nendpoint %s\n", relayed.LocalAddr(), wireguard.LocalAddr())
	peer := must(net.ResolveUDPAddr("udp4", strings.TrimSpace(string(must(os.ReadFile(os.Args[3]))))))
	check(client.CreatePermission(peer))
	go pass(wireguard, func(datagram []byte) error {
		_, err := relayed.WriteTo(datagram, peer) // as ChannelData, once the library has bound a channel
		return err
	})
	pass(connection{relayed}, func(datagram []byte) error {
		_, err := wireguard.Write(datagram)
		return err
	})
}

// What comes from anybody; the server lets through only the peer.
type connection struct{ net.PacketConn }

func (c connection) Read(buffer []byte) (int, error) {
	size, _, err := c.ReadFrom(buffer)
	return size, err
}

func pass(from io.Reader, send func([]byte) error) {
	buffer := make([]byte, largest)
	for {
		size := must(from.Read(buffer))
		check(send(buffer[:size]))
	}
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
