/* A UDP forwarder in user space, as plain as one can be: what a relay that is a process costs. For the bench of paths.
 * forwarder PORT_A ADDRESS_A PORT_B ADDRESS_B WIREGUARD: what comes to PORT_A leaves from PORT_B to ADDRESS_B, and the
 * reverse. */
#include <arpa/inet.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static int open_at(const char *port)
{
    struct sockaddr_in own = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
    int fd = socket(AF_INET, SOCK_DGRAM, 0), room = 4 << 20;

    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    return bind(fd, (struct sockaddr *)&own, sizeof own) ? -1 : fd;
}

int main(int argc, char **argv)
{
    static char buffer[65536];
    struct sockaddr_in to[2];
    struct pollfd at[2];

    if (argc != 6)
        return 2;
    for (int i = 0; i < 2; i++) {
        at[i] = (struct pollfd){ .fd = open_at(argv[1 + 2 * i]), .events = POLLIN };
        memset(&to[i], 0, sizeof to[i]);
        to[i].sin_family = AF_INET;
        to[i].sin_port = htons(atoi(argv[5]));
        if (at[i].fd < 0 || !inet_pton(AF_INET, argv[2 + 2 * i], &to[i].sin_addr))
            return 1;
    }
    while (poll(at, 2, -1) > 0)
        for (int i = 0; i < 2; i++)
            for (int n = 0; n < 64 && at[i].revents & POLLIN; n++) {
                ssize_t size = recv(at[i].fd, buffer, sizeof buffer, MSG_DONTWAIT);

                if (size < 0)
                    break;
                sendto(at[!i].fd, buffer, size, 0, (struct sockaddr *)&to[!i], sizeof to[!i]);
            }
    return 1;
}
